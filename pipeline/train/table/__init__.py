"""The item table dealt over the ranks: outside the engine, updated where it is touched."""
