"""Process-level building blocks: cores, threads, forks, the cache folder, atomic writes."""
