//! The algebra of resources.

use agentd_api::message::NodeResources;
use agentd_api::pod::{ContainerResources, ExecutorResources, PodSpec};
use agentd_api::resources::{Resource, Resources, Short, shortfall};
use proptest::prelude::*;

fn pod_of(containers: &[(f64, f64, f64, u32)]) -> PodSpec {
    let json = r#"{"id":"/a","containers":[{"name":"a","resources":{},"exec":{"command":{"shell":"true"}}}]}"#;
    let mut pod = agentd_api::parse::pod(json.as_bytes()).unwrap();
    let one = pod.containers[0].clone();
    pod.executor_resources = ExecutorResources::default();
    pod.containers = containers
        .iter()
        .map(|&(cpus, mem, disk, gpus)| {
            let mut container = one.clone();
            container.resources = ContainerResources { cpus, mem, disk, gpus };
            container
        })
        .collect();
    pod
}

#[test]
fn a_pod_needs_its_containers_and_its_supervisor() {
    for (containers, expected) in [
        (vec![(1.0, 128.0, 0.0, 0)], [1100, 160 * 1024, 10 * 1024, 0]),
        (vec![(0.1, 0.001, 0.5, 2), (0.2, 1.0, 0.0, 1)], [400, 33 * 1024 + 2, 10 * 1024 + 512, 3000]),
        // Below a thousandth is a thousandth; a slip of the fraction is none.
        (vec![(0.0001, 1.0, 0.0, 0)], [101, 33 * 1024, 10 * 1024, 0]),
        (vec![(1.1, 1.0, 0.0, 0)], [1200, 33 * 1024, 10 * 1024, 0]),
    ] {
        let [cpus_milli, mem_kib, disk_kib, gpus_milli] = expected;
        let need = Resources { cpus_milli, mem_kib, disk_kib, gpus_milli };
        assert_eq!(Resources::of_pod(&pod_of(&containers)), need, "{containers:?}");
    }
}

#[test]
fn many_tenths_make_a_whole() {
    let tenths = vec![(0.1, 0.1, 0.0, 0); 1000];
    assert_eq!(Resources::of_pod(&pod_of(&tenths)).cpus_milli, 100_000 + 100);
}

#[test]
fn what_is_short_is_told_with_amounts() {
    let free = Resources { cpus_milli: 1500, mem_kib: 100 * 1024, disk_kib: 1 << 30, gpus_milli: 0 };
    let need = Resources { cpus_milli: 4000, mem_kib: 512 * 1024 + 512, disk_kib: 1 << 20, gpus_milli: 250 };
    let short = shortfall(need, free);
    assert_eq!(
        short.0,
        [
            Short { resource: Resource::Cpus, need: 4000, free: 1500, executor: 0 },
            Short { resource: Resource::Mem, need: 512 * 1024 + 512, free: 100 * 1024, executor: 0 },
            Short { resource: Resource::Gpus, need: 250, free: 0, executor: 0 },
        ]
    );
    assert_eq!(
        short.to_string(),
        "resource     needed     free      short\n\
         cpus              4      1.5        2.5\n\
         mem       512.5 MiB  100 MiB  412.5 MiB\n\
         gpus           0.25        0       0.25"
    );
    assert_eq!(
        short.one_line(),
        "cpus: 4 needed, 1.5 free, 2.5 short; mem: 512.5 MiB needed, 100 MiB free, 412.5 MiB short; gpus: 0.25 needed, \
         0 free, 0.25 short"
    );
    let executor = Resources { cpus_milli: 100, mem_kib: 32 * 1024, ..Resources::ZERO };
    assert_eq!(
        short.with_executor(executor).one_line(),
        "cpus: 4 needed (0.1 of it executorResources), 1.5 free, 2.5 short; mem: 512.5 MiB needed (32 MiB of it \
         executorResources), 100 MiB free, 412.5 MiB short; gpus: 0.25 needed, 0 free, 0.25 short"
    );
    assert!(shortfall(free, free).is_empty());
}

#[test]
fn odd_amounts_of_a_node_count_as_nothing_or_as_the_most() {
    let odd = NodeResources { cpus: f64::NAN, mem: -5.0, disk: f64::INFINITY, gpus: 0.9999 };
    let capacity = Resources::capacity(&odd);
    assert_eq!((capacity.cpus_milli, capacity.mem_kib, capacity.disk_kib, capacity.gpus_milli), (0, 0, u64::MAX, 999));
}

#[test]
fn overflow_is_told() {
    let one = Resources { cpus_milli: 1, ..Resources::ZERO };
    let most = Resources { cpus_milli: u64::MAX, ..Resources::ZERO };
    assert_eq!(most.checked_add(one), None);
    assert_eq!(most.checked_mul(2), None);
    assert_eq!(Resources::ZERO.checked_sub(one), None);
    assert_eq!(most.saturating_add(one), most);
    assert_eq!(Resources::ZERO.saturating_sub(one), Resources::ZERO);
}

fn amounts() -> impl Strategy<Value = Resources> {
    let amount = 0..(1_u64 << 40);
    [amount.clone(), amount.clone(), amount.clone(), amount]
        .prop_map(|[cpus_milli, mem_kib, disk_kib, gpus_milli]| Resources { cpus_milli, mem_kib, disk_kib, gpus_milli })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn adding_and_removing_in_any_order_comes_back(
        start in amounts(),
        others in proptest::collection::vec(amounts(), 0..20),
        seed in any::<u64>(),
    ) {
        let mut sum = start;
        for other in &others {
            sum = sum.checked_add(*other).unwrap();
        }
        let mut left = others.clone();
        let mut pick = seed;
        while !left.is_empty() {
            pick = pick.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let other = left.swap_remove((pick >> 33) as usize % left.len());
            sum = sum.checked_sub(other).unwrap();
        }
        prop_assert_eq!(sum, start);
    }

    #[test]
    fn fits_means_that_nothing_is_short(need in amounts(), free in amounts()) {
        prop_assert_eq!(need.fits_in(free), shortfall(need, free).is_empty());
        prop_assert_eq!(need.fits_in(free), free.checked_sub(need).is_some());
        prop_assert!(need.fits_in(need.checked_add(free).unwrap()));
        for short in shortfall(need, free).0 {
            prop_assert!(short.need > short.free);
        }
    }

    #[test]
    fn a_node_is_the_same_after_the_way_to_the_wire_and_back(resources in amounts()) {
        prop_assert_eq!(Resources::capacity(&NodeResources::from(resources)), resources);
    }

    #[test]
    fn rounding_never_admits_what_does_not_fit(cpus in 0.001..1000.0_f64, mem in 0.001..1e6_f64) {
        let need = Resources::of_pod(&pod_of(&[(cpus, mem, 0.0, 0)]));
        let supervisor = Resources::of_pod(&pod_of(&[]));
        let container = need.checked_sub(supervisor).unwrap();
        prop_assert!(container.cpus_milli as f64 >= cpus * 1000.0 - 1e-5);
        prop_assert!((container.cpus_milli as f64) < cpus * 1000.0 + 1.0);
        let capacity = Resources::capacity(&NodeResources { cpus, mem, disk: 0.0, gpus: 0.0 });
        prop_assert!(capacity.mem_kib <= container.mem_kib && container.mem_kib <= capacity.mem_kib + 1);
        prop_assert!(capacity.cpus_milli <= container.cpus_milli);
    }
}
