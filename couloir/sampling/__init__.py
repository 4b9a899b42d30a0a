"""What physics says: engines, systems, seeding and umbrella windows."""
