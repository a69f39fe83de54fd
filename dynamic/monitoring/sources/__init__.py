"""One file for each kind of sensor."""
