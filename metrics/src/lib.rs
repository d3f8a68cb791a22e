//! Host facts and container usage.
