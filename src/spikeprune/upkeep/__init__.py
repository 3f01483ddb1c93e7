"""Keeps a model at its masks: in every step, in averaged copies, in files. It knows neither methods nor schedules."""
