"""What is missing before a long run, and what memory it will need."""
