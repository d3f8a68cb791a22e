//! Integration tests of agentd and the programs they run.
