"""Read models of the fleet as it is now, for the dashboard, programs and Prometheus."""
