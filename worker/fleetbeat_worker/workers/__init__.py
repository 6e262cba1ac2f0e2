"""Processes of a worker pool: RQ workers, dispatcher, pool controller and autoscaling."""
