//! `GET /v1/profile`: what containers spend their time on CPUs with, as it is kept, or sampled now.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agentd_ebpf::observe::profile::{FASTEST, SLOWEST};
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_DISPOSITION, HeaderName, HeaderValue};

use super::answer::{Answer, Refusal, whole};
use super::backend::Pods;
use super::handle::{Api, Call};
use super::query::Query;
use crate::access::Caller;
use crate::access::policy::Verb;
use crate::node::NodeError;
use crate::profile::gathered::Gathered;
use crate::profile::kept::{MINUTES, Subject, Which};
use crate::profile::pprof::{self, Span};
use crate::profile::{Profiles, svg, wanted};
use crate::target;

/// Longest sampling on request, in seconds.
const LONGEST: u64 = 600;

/// Keeps a browser from taking a picture for a page that may load things.
const POLICY: HeaderName = HeaderName::from_static("content-security-policy");

#[derive(Debug, Clone, Copy)]
enum Format {
    Folded,
    Pprof,
    Svg,
}

/// What is asked for.
struct Wanted {
    pod: String,
    instance: Option<String>,
    container: Option<String>,
    seconds: Option<u64>,
    hz: u32,
    minutes: u64,
    format: Format,
}

/// `GET /v1/profile`
pub async fn profile<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    let wanted = read(call.query)?;
    let profiles = api.pods.profiles().ok_or_else(|| Refusal::not_found("this daemon has no profiles"))?;
    let (gathered, length, what) = if let Some(seconds) = wanted.seconds {
        let length = Duration::from_secs(seconds);
        let (gathered, name) = sample(api, call.caller, profiles, &wanted, length).await?;
        (gathered, length, format!("{name}, {seconds} s at {} Hz", wanted.hz))
    } else {
        let gathered = kept(api, call.caller, profiles, &wanted)?;
        let name = wanted.container.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
        let what = format!("{}{name}, the last {} min", wanted.pod, wanted.minutes);
        (gathered, Duration::from_secs(wanted.minutes * 60), what)
    };
    let format = wanted.format;
    // thousands of stacks take milliseconds
    let answer = tokio::task::spawn_blocking(move || tell(&gathered, format, length, &what)).await;
    answer.map_err(|error| Refusal::failed(format!("the profile could not be written: {error}")))?
}

fn read(mut query: Query) -> Result<Wanted, Refusal> {
    let pod = query.text("pod").map(|id| if id.starts_with('/') { id } else { format!("/{id}") });
    let [instance, container] = ["instance", "container"].map(|name| query.text(name));
    let seconds = within(&mut query, "seconds", 1..=LONGEST);
    let hz = within(&mut query, "hz", u64::from(SLOWEST)..=u64::from(FASTEST));
    let minutes = within(&mut query, "minutes", 1..=MINUTES);
    let words = [("folded", Format::Folded), ("pprof", Format::Pprof), ("svg", Format::Svg)];
    let format = query.word("format", &words).unwrap_or(Format::Folded);
    if hz.is_some() && seconds.is_none() {
        query.refuse("hz", "found without `seconds`; a profile that is kept has the rate of its pod's label");
    }
    if minutes.is_some() && seconds.is_some() {
        query.refuse("minutes", "found with `seconds`; leave one of them out");
    }
    if pod.is_none() {
        query.refuse("pod", "missing; expected the id of a pod");
    }
    query.finish()?;
    Ok(Wanted {
        // a query without a pod did not finish
        pod: pod.unwrap_or_default(),
        instance,
        container,
        seconds,
        hz: hz.map_or(wanted::USUAL, |hz| hz as u32),
        minutes: minutes.unwrap_or(MINUTES),
        format,
    })
}

/// A whole number in a range.
fn within(query: &mut Query, name: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
    let text = query.text(name)?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && range.contains(number));
    if number.is_none() {
        let shown: String = text.chars().take(80).collect();
        let (least, most) = (range.start(), range.end());
        query.refuse(name, format!("found {shown:?}, expected a whole number from {least} to {most}"));
    }
    number
}

/// Samples a running container now.
async fn sample<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    profiles: &Arc<Profiles>,
    wanted: &Wanted,
    length: Duration,
) -> Result<(Gathered, String), Refusal> {
    let pod = api.pods.get(&wanted.pod)?;
    // it costs the host time, and a caller that may only read is not to take it
    api.authorize(caller, Verb::Logs, Some(&pod.spec))?;
    api.authorize(caller, Verb::Exec, Some(&pod.spec))?;
    let target = target::find(&pod, wanted.instance.as_deref(), wanted.container.as_deref())?;
    let name = format!("{} {}", target.pod, target.container);
    let place = profiles.place(&target.instance, target.slot).map_err(|error| {
        NodeError::Conflict(format!("the container {} of {} has ended ({error})", target.container, target.pod))
    })?;
    let subject =
        Subject { spec: Arc::new(pod.spec), instance: target.instance, container: target.container, slot: target.slot };
    let sampled = tokio::select! {
        sampled = profiles.sample(place, subject, wanted.hz, length) => sampled,
        () = api.shutdown.cancelled() => return Err(Refusal::stopping()),
    };
    let gathered = sampled.map_err(|fault| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", fault))?;
    Ok((gathered, name))
}

/// What is kept; also of a pod that is gone.
fn kept<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    profiles: &Arc<Profiles>,
    wanted: &Wanted,
) -> Result<Gathered, Refusal> {
    let there = api.pods.get(&wanted.pod);
    let gone = profiles.spec(&wanted.pod);
    match (&there, &gone) {
        (Ok(pod), _) => api.authorize(caller, Verb::Logs, Some(&pod.spec))?,
        (Err(_), Some(spec)) => api.authorize(caller, Verb::Logs, Some(spec))?,
        (Err(_), None) => {}
    }
    // those of an earlier pod with this id are not for whoever may see the present one
    let same = match (&there, &gone) {
        (Ok(pod), Some(spec)) => pod.spec.labels == spec.labels,
        _ => true,
    };
    let (pod, instance, container) = (wanted.pod.as_str(), wanted.instance.as_deref(), wanted.container.as_deref());
    let found = profiles.kept(Which { pod, instance, container }, wanted.minutes).filter(|_| same);
    if let Some(gathered) = found {
        return Ok(gathered);
    }
    let status = there?;
    target::known(&status, instance, container)?;
    let cure = format!(
        "label the pod {}=true to have it profiled all the time, or have it sampled now with seconds=N \
         (agentctl profile --seconds N)",
        wanted::LABEL
    );
    Err(Refusal::not_found(format!("no profile of {pod} is kept; {cure}")))
}

fn tell(gathered: &Gathered, format: Format, length: Duration, title: &str) -> Answer {
    let (media, body) = match format {
        Format::Folded => ("text/plain; charset=utf-8", gathered.folded().into_bytes()),
        Format::Svg => ("image/svg+xml", svg::draw(gathered, title).into_bytes()),
        Format::Pprof => {
            let length = i64::try_from(length.as_nanos()).unwrap_or(i64::MAX);
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let begin = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX).saturating_sub(length);
            let body = pprof::encode(gathered, Span { begin, length })
                .map_err(|error| Refusal::failed(format!("the profile could not be written: {error}")))?;
            ("application/octet-stream", body)
        }
    };
    let mut response = whole(StatusCode::OK, media, body);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match format {
        Format::Svg => {
            let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
            headers.insert(POLICY, policy);
        }
        Format::Pprof => {
            let name = HeaderValue::from_static("attachment; filename=\"profile.pb.gz\"");
            headers.insert(CONTENT_DISPOSITION, name);
        }
        Format::Folded => {}
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use agentd_api::problem::Violation;

    use super::super::route::Route;
    use super::*;

    fn faults(query: &str) -> Vec<Violation> {
        let Err(refusal) = read(Query::parse(Some(query), Route::Profile.parameters())) else { return Vec::new() };
        refusal.into_problem().errors
    }

    #[test]
    fn parameters_are_held_to_their_ranges_and_to_each_other() {
        for sound in ["pod=a", "pod=/a&seconds=600&hz=99&format=svg", "pod=a&minutes=1&container=b&format=pprof"] {
            assert!(faults(sound).is_empty(), "{sound}: {:?}", faults(sound));
        }
        for bad in [
            "seconds=1",
            "pod=a&seconds=0",
            "pod=a&seconds=601",
            "pod=a&seconds=1&hz=18",
            "pod=a&seconds=1&hz=100",
            "pod=a&hz=49",
            "pod=a&minutes=0",
            "pod=a&minutes=16",
            "pod=a&seconds=1&minutes=1",
            "pod=a&seconds=-1",
            "pod=a&seconds=%2B1",
            "pod=a&seconds=one",
            "pod=a&format=png",
        ] {
            assert_eq!(faults(bad).len(), 1, "{bad}: {:?}", faults(bad));
        }
        let fault = &faults("pod=a&seconds=1&hz=0")[0];
        assert_eq!(
            (fault.path.as_str(), fault.message.as_str()),
            ("hz", "found \"0\", expected a whole number from 19 to 99")
        );
        let read = read(Query::parse(Some("pod=a"), Route::Profile.parameters())).ok().unwrap();
        assert_eq!((read.pod.as_str(), read.hz, read.minutes), ("/a", 49, 15));
    }
}
