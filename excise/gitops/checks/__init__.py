"""What `doctor` looks at, one function a topic; each yields what it finds, and changes nothing."""
