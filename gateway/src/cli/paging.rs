//! Long listings by pages.

use clap::Args;
use serde::de::DeserializeOwned;

use super::Failure;
use super::output::error_line;
use crate::admin::Client;
use crate::admin::proto::{Page, Paging, Request};

/// `--limit` and `--after` of long listings.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct PageArgs {
    /// At most so many; where the rest begins is told on standard error
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Go on after this, which an earlier listing with --limit told
    #[arg(long, value_name = "NAME")]
    after: Option<String>,
}

impl PageArgs {
    /// The whole listing, or as much of it as is asked for.
    pub(super) fn list<T: DeserializeOwned>(
        self,
        client: &mut Client,
        request: impl Fn(Paging) -> Request,
    ) -> Result<Vec<T>, Failure> {
        let most = self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(1));
        let (mut listed, mut after) = (Vec::new(), self.after);
        loop {
            let limit = Some(most - listed.len());
            let page: Page<T> = client.ask(request(Paging { after, limit }))?;
            listed.extend(page.items);
            let Some(next) = page.next else { return Ok(listed) };
            if listed.len() >= most {
                error_line(&format!("there is more: --after {next}"));
                return Ok(listed);
            }
            after = Some(next);
        }
    }
}
