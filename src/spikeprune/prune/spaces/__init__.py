"""What is pruned one by one: single weights (also in n:m patterns), or whole channels."""
