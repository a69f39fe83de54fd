"""Requests that wait: the queue, asyncio, copies of inputs."""
