//! The signal `stacks`: how samples of stacks are had, and what sampling has met with.
//!
//! Its programs are no part of the watcher's: [`crate::profile`] loads them when somebody is profiled, and takes them out when
//! nobody is any more. So it stands on no rung in between, which is no fault.

use agentd_ebpf::observe::{Rung, Signal, SignalState};
use agentd_metrics::catalogue::agent;
use agentd_metrics::model::{Batch, ScopeId};

use crate::config;
use crate::profile::Figures;

/// Why the signal stands on no rung while nobody wants it.
pub const IDLE: &str = "nobody is profiled now; its program is loaded when somebody is";

/// Why nothing may be sampled by this configuration, if that is so.
pub fn refused(settings: &config::Observe) -> Option<String> {
    let left_out = |word: &str| settings.without.iter().any(|one| one == word);
    if !settings.wants("profile") {
        Some("observe.groups has not profile".to_owned())
    } else if left_out(Rung::PerfEvent.name()) {
        Some("perf_event: left out by configuration (observe.without)".to_owned())
    } else {
        None
    }
}

/// Where the signal stands.
pub fn state(settings: &config::Observe, figures: &Figures) -> SignalState {
    let (rung, why) = match (refused(settings), &figures.fault) {
        (Some(why), _) => (Rung::Off, Some(why)),
        (None, Some(fault)) => (Rung::Off, Some(fault.clone())),
        (None, None) if figures.hz > 0 => (Rung::PerfEvent, None),
        (None, None) => (Rung::Off, Some(IDLE.to_owned())),
    };
    SignalState { signal: Signal::Stacks, rung, why }
}

/// What sampling has met with.
pub(super) fn report(batch: &mut Batch, scope: ScopeId, figures: &Figures) {
    let tallies = &figures.tallies;
    batch.put(&agent::PROFILE_CONTAINERS, scope, &[], figures.containers);
    batch.put(&agent::PROFILE_RATE, scope, &[], u64::from(figures.hz));
    batch.put(&agent::PROFILE_MEMORY, scope, &[], figures.map_bytes);
    batch.put(&agent::PROFILE_TICKS, scope, &[], tallies.ticks);
    batch.put(&agent::PROFILE_SAMPLES, scope, &[], tallies.samples);
    batch.put(&agent::PROFILE_THINNED, scope, &[], tallies.thinned);
    for (what, count) in [
        ("samples", tallies.lost_samples),
        ("stacks", tallies.lost_stacks),
        ("notices", tallies.lost_notices),
        ("unread", figures.unread),
        ("unclaimed", figures.unclaimed),
        ("minutes", figures.dropped_minutes),
    ] {
        batch.put(&agent::PROFILE_LOST, scope, &[what], count);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use agentd_metrics::model::Scope;

    use super::*;

    #[test]
    fn the_rung_follows_from_configuration_faults_and_use() {
        let all = config::Observe::default();
        let told = |settings: &config::Observe, hz, fault: Option<&str>| {
            let figures = Figures { hz, fault: fault.map(str::to_owned), ..Figures::default() };
            let state = state(settings, &figures);
            assert_eq!(state.signal, Signal::Stacks);
            (state.rung, state.why.unwrap_or_default())
        };
        assert_eq!(told(&all, 0, None), (Rung::Off, IDLE.to_owned()));
        assert_eq!(told(&all, 49, None), (Rung::PerfEvent, String::new()));
        assert_eq!(told(&all, 0, Some("EPERM")), (Rung::Off, "EPERM".to_owned()));
        let others = config::Observe { groups: vec!["sched".to_owned()], ..all.clone() };
        assert_eq!(told(&others, 0, None), (Rung::Off, "observe.groups has not profile".to_owned()));
        let lesser = config::Observe { without: vec!["perf_event".to_owned()], ..all };
        assert!(told(&lesser, 0, Some("EPERM")).1.contains("left out by configuration"));
    }

    #[test]
    fn every_word_is_there_before_anybody_was_profiled() {
        let mut batch = Batch::new(SystemTime::now());
        let scope = batch.scope(Scope::default());
        report(&mut batch, scope, &Figures::default());
        assert_eq!(batch.points(&agent::PROFILE_LOST).len(), 6);
        assert_eq!(batch.points(&agent::PROFILE_SAMPLES).len(), 1);
        assert_eq!(batch.faults(), Vec::<String>::new());
    }
}
