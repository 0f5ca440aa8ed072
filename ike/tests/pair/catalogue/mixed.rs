//! Two rekeys of one SA that cross, of which one has an additional key exchange (RFC 9370 2.2.4) and
//! so a round more than the other: whose makes the redundant SA is decided by the nonces all the
//! same (RFC 7296 2.8.1, 2.8.2), when both are made.

use super::*;

const IKE_ONE: &str = "aes256gcm16-prfsha384-x25519";
const IKE_TWO: &str = "aes256gcm16-prfsha384-x25519-ke1_ecp256";
const ESP_ONE: &str = "aes256gcm16-x25519-esn";
const ESP_TWO: &str = "aes256gcm16-x25519-ke1_ecp256-esn";

fn one() -> Setup {
    quiet().suites(IKE_ONE, ESP_ONE)
}

/// What a side asks for and agrees to from now on.
fn configure(stage: &mut Stage, side: Side, ike_suite: &str, esp_suite: &str) {
    let mut config = stage.pair.peer(side).config.clone();
    (config.ike_suites, config.esp_suites) = (ike(ike_suite), esp(esp_suite));
    stage.command(side, Command::Reconfigure(Box::new(config)));
}

/// Both requests are out: `several`'s, with two key exchanges, and the other side's, with one. Each
/// side agrees to what the other asks for.
fn crossing(stage: &mut Stage, several: Side, rekey: impl Fn(&mut Stage, Side)) {
    configure(stage, several, IKE_TWO, ESP_TWO);
    rekey(stage, several.other());
    rekey(stage, several);
    configure(stage, several, IKE_ONE, ESP_ONE);
    configure(stage, several.other(), IKE_TWO, ESP_TWO);
    stage.see("A[1/1*]", "A[1/1*]");
}

#[test]
fn catalogue_child_collision_mixed() {
    for several in [Client, Server] {
        each_outcome(one, |stage| {
            let single = several.other();
            // The client's exchange makes 2/3, the server's 3/2.
            let (its, others) = match single {
                Client => ("2/3", "3/2"),
                Server => ("3/2", "2/3"),
            };
            crossing(stage, several, |stage, side| stage.rekey_child(side, "1/1"));
            stage.to(several);
            // <-- CREATE_CHILD_SA of the one with one key exchange: its child is made.
            see(stage, single, "A[1/1*]", &format!("A[1/1* {its}]"));
            stage.to(single);
            // <-- CREATE_CHILD_SA { N(ADDITIONAL_KEY_EXCHANGE) }: nothing yet.
            see(stage, single, "A[1/1*]", &format!("A[1/1* {its}]"));
            stage.to(single);
            // The answer to the one with one: what the other one makes is to be known first.
            see(stage, single, "A[1/1*]", &format!("A[1/1* {its}]"));
            stage.to(several);
            // --> IKE_FOLLOWUP_KE
            see(stage, single, "A[1/1*]", &format!("A[1/1* {its}]"));
            stage.to(single);
            // <-- IKE_FOLLOWUP_KE: now both are made, and this side decides.
            let decided = if stage.loser() == single {
                format!("A[1/1* {others}]")
            } else {
                format!("A[1/1 {its}* {others}]")
            };
            see(stage, single, &decided, &format!("A[1/1* {its}]"));
            stage.run();
            let (won, _) = stage.outcome("2/3", "3/2");
            format!("A[{won}*]")
        });
    }
}

#[test]
fn catalogue_ike_collision_mixed() {
    for several in [Client, Server] {
        each_outcome(one, |stage| {
            let single = several.other();
            crossing(stage, several, Stage::rekey_ike);
            stage.to(several);
            // The exchange with one key exchange makes `B`.
            see(stage, single, "A[1/1*]", "A[1/1*] B[]");
            stage.to(single);
            see(stage, single, "A[1/1*]", "A[1/1*] B[]");
            stage.to(single);
            // Its answer: what the other one makes is to be known first.
            see(stage, single, "A[1/1*]", "A[1/1*] B[]");
            stage.to(several);
            see(stage, single, "A[1/1*]", "A[1/1*] B[]");
            stage.to(single);
            // IKE_FOLLOWUP_KE makes `C`, and this side decides (RFC 7296 2.8.2).
            let decided =
                if stage.loser() == single { "A~[] B-[] C[1/1*]" } else { "A~[] B[1/1*] C[]" };
            let (one, other) = (stage.line(single), stage.line(several));
            assert_eq!(one, sorted(decided));
            assert_eq!(other, sorted("A[1/1*] B[]"));
            stage.pair.assert_traffic_flows();
            stage.run();
            let won = if stage.loser() == single { "C" } else { "B" };
            format!("{won}[1/1*]")
        });
    }
}
