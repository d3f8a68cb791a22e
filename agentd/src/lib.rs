//! The agentd daemon and its command line.
