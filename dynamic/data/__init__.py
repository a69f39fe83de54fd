"""Pictures and arrays, from files to what a network takes."""
