"""What a training tells of itself: gathered from its ranks, and put beside what they save."""
