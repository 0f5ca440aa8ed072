//! What a delivery says. It is the platform's own document, of which only numbers are taken.

use serde_json::Value;

use super::{HookError, HookKind};

/// What GitLab calls a job that does not run any more.
const GITLAB_OVER: [&str; 4] = ["success", "failed", "canceled", "skipped"];

/// A job, or a whole run with all its jobs, that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobOver {
    /// The platform.
    pub kind: HookKind,
    /// The number of its repository or project.
    pub project: String,
    /// The number of the run or pipeline.
    pub run: String,
    /// Which attempt at the run; GitHub only.
    pub attempt: Option<String>,
    /// The number of the job; `None`: every job of this attempt.
    pub job: Option<String>,
}

impl std::fmt::Display for JobOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, project, run, attempt, job } = self;
        write!(f, "{} project {project} run {run}", kind.name())?;
        if let Some(attempt) = attempt {
            write!(f, " attempt {attempt}")?;
        }
        job.as_ref().map_or(Ok(()), |job| write!(f, " job {job}"))
    }
}

/// What a delivery says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A job is over.
    Over(JobOver),
    /// Nothing that ends a lease, and why not.
    Nothing(&'static str),
}

/// Reads a delivery whose sender is proven.
///
/// # Errors
/// [`HookError::Malformed`] when the body is not what the platform sends with such an event.
pub fn read(kind: HookKind, event: Option<&str>, body: &[u8]) -> Result<Told, HookError> {
    let document: Value =
        serde_json::from_slice(body).map_err(|_| HookError::Malformed("body is no JSON"))?;
    match kind {
        HookKind::Github => github(event, &document),
        HookKind::Gitlab => gitlab(&document),
    }
}

fn github(event: Option<&str>, document: &Value) -> Result<Told, HookError> {
    let part = match event {
        Some("ping") => return Ok(Told::Nothing("the webhook is set up")),
        Some("workflow_job") => "workflow_job",
        Some("workflow_run") => "workflow_run",
        Some(_) => return Ok(Told::Nothing("only workflow_job and workflow_run end leases")),
        None => return Err(HookError::Malformed("header has no X-GitHub-Event")),
    };
    if document["action"] != "completed" {
        return Ok(Told::Nothing("the job is not over"));
    }
    let about = &document[part];
    let whole = part == "workflow_run";
    let run = number(&about[if whole { "id" } else { "run_id" }]);
    // Tokens name a job by its check run, whose number the job has as well.
    let check_run = about["check_run_url"].as_str().and_then(|url| url.rsplit('/').next());
    let check_run = check_run.filter(|text| is_number(text)).map(str::to_owned);
    let job = match whole {
        true => None,
        false => Some(check_run.or_else(|| number(&about["id"]))),
    };
    let project = number(&document["repository"]["id"]);
    let (Some(project), Some(run), None | Some(Some(_))) = (project, run, &job) else {
        return Err(HookError::Malformed("body does not say which job is over"));
    };
    let attempt = number(&about["run_attempt"]);
    Ok(Told::Over(JobOver { kind: HookKind::Github, project, run, attempt, job: job.flatten() }))
}

fn gitlab(document: &Value) -> Result<Told, HookError> {
    if document["object_kind"] != "build" {
        return Ok(Told::Nothing("only job events end leases"));
    }
    let status = document["build_status"].as_str();
    let status = status.ok_or(HookError::Malformed("body has no build_status"))?;
    if !GITLAB_OVER.contains(&status) {
        return Ok(Told::Nothing("the job is not over"));
    }
    let of = |name: &str| number(&document[name]);
    let (Some(project), Some(run), Some(job)) =
        (of("project_id"), of("pipeline_id"), of("build_id"))
    else {
        return Err(HookError::Malformed("body does not say which job is over"));
    };
    let (kind, job) = (HookKind::Gitlab, Some(job));
    Ok(Told::Over(JobOver { kind, project, run, attempt: None, job }))
}

/// A number, written as one or as text.
fn number(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => number.as_u64().map(|number| number.to_string()),
        Value::String(text) if is_number(text) => Some(text.clone()),
        _ => None,
    }
}

fn is_number(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}
