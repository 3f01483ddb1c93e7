"""The units that are pruned one by one: single weights (also in n:m patterns), or whole channels."""
