"""The budget policy: the points of a frontier that each limit allows on this device, and the choice among them."""
