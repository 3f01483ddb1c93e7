"""Code that several methods share. Nothing here is a method, and no method imports another one."""
