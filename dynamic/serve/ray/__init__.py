"""A bundle as an application of Ray Serve, and over data sets of Ray Data. It needs the extra `ray`."""
