"""What the runtime costs beside the engine, and how it does under load."""
