"""Cron: fleet files, crontabs and the times of their lines."""
