"""Heartbeats from cron: fleet files, crontab lines and their times."""
