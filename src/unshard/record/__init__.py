"""What training tells about itself: `unshard.record.json`, read and written without torch."""
