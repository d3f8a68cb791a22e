//! eBPF programs of agentd and their loader.
