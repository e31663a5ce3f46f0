"""Files that others made, read without trusting them: bounds before memory is asked for, and nothing is executed."""
