"""A report for people: one page, of whatever a command found."""
