"""Database: engine, schema, tables, migrations and bulk SQL."""
