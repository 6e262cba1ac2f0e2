"""Everything that holds a database connection: ingest, sweep, dashboard, and the command `fleetbeat`."""
