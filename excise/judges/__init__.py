"""What tells a refusal from an answer, one judge a file."""
