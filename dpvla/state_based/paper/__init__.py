"""The paper's tables: run again, compared, and how long that takes."""
