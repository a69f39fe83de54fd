"""Dynamic dimensions: as they are declared, and whether networks and graphs run and agree there."""
