"""Masks, selection, allocation, schedules, statistics and counts: plain functions of tensors, no framework."""
