"""Everything that is written: records that read and write themselves.

base        how a record is read from JSON, checked and written
schema      the schema number of a run folder's files
round       one mask update
run         record.json
epoch       a line of metrics.jsonl
statistics  statistics.json
bench       bench.json
analysis    analysis.json
whole       writing a file whole or not at all
"""
