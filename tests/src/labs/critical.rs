//! A certificate with a critical extension that nobody knows (RFC 5280 4.2), shown by a client and
//! by the gateway we connect to.

use std::time::Duration;

use anyhow::{Result, bail};

use super::external::{accepted, refused, trust_gateway};
use super::scene::Scene;
use super::sites::{BRANCH_NET, OTHER, OTHER_ID, SOON, branch, connected, site, state};
use crate::lab::charon::{Charon, Options};
use crate::lab::gateway::{ID, Settings};
use crate::lab::pkitool::{Authority, P256, STRANGE};
use crate::lab::swanctl::Connection;
use crate::lab::world::{PRIVATE_NET, Shape};
use crate::lab::{Lab, wait};

/// Refused both ways, and the operator is told which extension it is; the same extension without
/// the critical bit is ignored.
pub(super) fn run(lab: &Lab) -> Result<()> {
    let corp = Authority::new(&lab.path("corp"), "Corp Root", P256)?;
    let issue = |name: &str, critical| {
        corp.issue_strange(name, name, &format!("{name}.corp.example"), critical)
    };
    let (odd, even) = (issue("odd", true)?, issue("even", false)?);
    let of_site = |base: &str, critical| corp.issue_strange(base, "branch", OTHER_ID, critical);
    let (odd_site, even_site) = (of_site("oddsite", true)?, of_site("evensite", false)?);
    let more = format!(
        "\n[[role.match]]\nca = \"corp\"\nsan = \"*.corp.example\"\n\n[[ca]]\nname = \"corp\"\n\
         certificate = {:?}\nrevocation = \"off\"\n",
        corp.cert
    );
    let settings = Settings { more: more.clone(), ..Settings::default() };
    let scene = Scene::new(lab, Shape::default(), &settings)?;
    let host = scene.world.runner().clone();
    let _branch = branch(&scene.world)?;
    let charon = Charon::start(&host, &Options { any_critical: true, ..Options::default() })?;
    trust_gateway(&scene, &charon, &host)?;
    charon.install(&corp.cert, "x509ca/corp.pem")?;
    let says = format!("a critical extension that is not understood here ({STRANGE})");

    lab.step("a client with the extension, not critical: ignored");
    accepted(&scene, &charon, &[("even", &even)])?;
    refused(&scene, &charon, "odd", &odd, &says)?;

    lab.step("a gateway we connect to: refused");
    let answer = |pair: &super::external::Pair| -> Result<()> {
        charon.install(&pair.0, "private/site.pem")?;
        charon.install(&pair.1, "x509/site.pem")?;
        let connection = Connection {
            cert: "site.pem".to_owned(),
            local_id: OTHER_ID.to_owned(),
            remote_id: ID.to_owned(),
            local_ts: BRANCH_NET.to_owned(),
            remote_ts: PRIVATE_NET.to_owned(),
            ..Connection::default()
        };
        charon.load(&[connection], "")
    };
    answer(&odd_site)?;
    let from = charon.log().len();
    let more = format!("{more}\n{}", site(&corp.cert, &format!("remote = \"{OTHER}\"")));
    scene.gateway.reload(&Settings { more, ..settings })?;
    wait::holds(lab, "the refusal of the other gateway", SOON, || {
        let refusals = scene.gateway.refusals()?;
        Ok(refusals.iter().any(|refusal| {
            let what = refusal["what"].as_str().unwrap_or_default();
            what.contains(&says) && what.contains("branch")
        }))
    })?;
    charon.expect_log(from, "received DELETE for IKE_SA", Duration::from_secs(5))?;
    if state(&scene.gateway, "branch")?["state"] == "connected" {
        bail!("the site is connected");
    }

    lab.step("and taken when it is not critical");
    answer(&even_site)?;
    scene.gateway.told(&["site", "connect", "branch"])?;
    connected(lab, &scene.gateway, "branch", SOON)?;
    if charon.sas()?.matches("INSTALLED").count() != 1 {
        bail!("strongSwan does not list one child: {}", charon.sas()?);
    }
    scene.finish()
}
