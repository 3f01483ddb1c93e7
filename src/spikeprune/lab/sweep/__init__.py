"""Many runs from one file: their list, their workers and what they will take."""
