"""What the stages are made of, and the commands around them."""
