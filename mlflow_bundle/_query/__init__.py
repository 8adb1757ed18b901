"""SQL over the objects of a snapshot: the views, and the DuckDB connection that has them. DuckDB is loaded when asked for."""
