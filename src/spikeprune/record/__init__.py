"""Everything that is written: dataclasses that read and write themselves, under one schema number.

entry      how a dataclass is read from JSON, checked, and written
round      one mask update
whole      writing a file whole or not at all
"""
