//! Real servers: each scenario on each major version that is at hand.
//!
//! `integration/test` fetches servers and names them in `WALHOLD_TEST_SERVERS`; without it, those
//! already on the machine are taken. What a machine cannot do is reported as ignored, with the
//! reason. Scenarios bear the promise they hold (ARCHITECTURE.md) in front of their name.
//!
//! Environment: `WALHOLD_TEST_SERVERS` (`15=/path/bin 17=/path/bin`), `WALHOLD_TEST_ROUNDS` (how
//! often the crash scenarios kill), `WALHOLD_TEST_SEED` (replays their random moments),
//! `WALHOLD_TEST_KEEP` (set: leave the folders).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and makes its own files"
)]

mod cluster;
mod load;
mod low_level;
mod program;
mod room;
mod servers;
mod sql;
mod stock;
mod trace;

mod backup;
mod basebackup;
mod certificates;
mod compress;
mod crash;
mod disk_full;
mod drill;
mod durable;
mod expire;
mod failover;
mod fault;
mod hosts;
mod identical;
mod incremental;
mod pair;
mod pg_basebackup;
mod pg_receivewal;
mod pitr;
mod readme;
mod refusals;
mod restore;
mod resume;
mod seeding;
mod shutdown;
mod slots;
mod status;
mod timeline;
mod tls;
mod verify;
mod wal_get;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use room::{Outcome, Room, World};

/// A scenario, in a folder of its own, on one server version.
type Scenario = fn(&Room) -> Outcome;

const SCENARIOS: &[(&str, Scenario)] = &[
    ("p1_a_power_cut_at_any_status_keeps_what_it_reported", durable::power_cut),
    ("p1_no_acknowledged_commit_is_lost_by_kill_9", crash::receive_killed),
    ("p1_shutdown_waits_for_the_receiver_and_no_longer", shutdown::orderly),
    ("p1_a_full_disk_stops_no_one_for_good", disk_full::receive_on_small_disk),
    ("p1_a_slot_that_keeps_too_much_is_dropped", disk_full::slot_dropped),
    ("p2_resumes_after_sigterm", resume::after_sigterm),
    ("p2_resumes_after_kill_9", resume::after_kill),
    ("p2_resumes_in_segments_of_1_gb", resume::gigabytes),
    ("p2_a_gap_is_refused_with_both_positions", resume::gap),
    ("p2_a_gap_is_accepted_by_its_position", resume::gap_accepted),
    ("p2_a_standby_behind_the_archive_is_waited_for", resume::standby_behind),
    ("p2_a_new_backup_lets_receiving_go_on_after_a_gap", resume::after_island),
    ("p1_promotions_under_load_lose_no_acknowledged_commit", failover::promotions_under_load),
    ("p2_a_promotion_is_followed", timeline::promotion),
    ("p2_a_crash_of_the_server_is_one_line_and_one_when_it_is_over", failover::crash_restart),
    ("p2_several_promotions_while_we_were_away_are_followed", timeline::several_while_away),
    ("p2_a_timeline_that_ends_with_a_segment_is_followed", timeline::at_boundary),
    ("p2_a_slot_that_the_new_primary_lacks_is_made", failover::slot_made),
    ("p2_a_named_slot_that_the_new_primary_lacks_is_asked_for", failover::slot_missing),
    ("p2_a_slot_that_lost_its_wal_is_a_gap", failover::slot_lost),
    ("p2_a_restored_server_goes_on_in_the_same_repository", timeline::after_restore),
    ("slots_are_made_listed_and_dropped", slots::commands),
    ("slots_are_used_by_a_role_without_sql", slots::without_sql),
    ("p3_a_backup_under_load_restores", backup::under_load),
    ("p3_a_backup_of_an_idle_server_is_sealed_at_once", backup::idle_beside_receiver),
    ("p3_a_backup_alone_brings_its_own_wal", backup::idle_alone),
    ("p3_a_backup_whose_wal_comes_late_is_sealed_then", backup::sealed_later),
    ("p3_a_receiver_waits_for_a_backup_alone", backup::then_a_receiver),
    ("p3_backups_of_a_primary_and_of_a_standby_restore_with_their_tablespaces", seeding::primary_and_standby),
    ("p8_a_restored_standby_streams_and_takes_from_the_archive_what_is_gone", seeding::standby_of_archive),
    ("p3_a_killed_backup_is_never_offered", crash::backup_killed),
    ("p3_a_backup_killed_alone_is_never_offered", crash::backup_killed_alone),
    ("p3_a_missing_segment_is_named_and_refused", backup::missing_segment),
    ("p3_a_damaged_file_is_named_and_refused", backup::damaged_file),
    ("p3_a_delta_restore_rewrites_what_a_server_changed", restore::delta),
    ("p3_a_restore_that_is_stopped_leaves_nothing", restore::stopped),
    ("p3_a_restore_to_a_disk_that_fills_up_leaves_nothing", restore::disk_full),
    ("p3_incremental_backups_under_load_restore", incremental::chain_under_load),
    ("p3_what_was_cut_off_does_not_come_back", incremental::cut_off_and_grown),
    ("p3_what_was_cut_off_between_two_backups_does_not_come_back", incremental::cut_off_and_grown_at_once),
    ("p3_an_incremental_backup_needs_the_wal_since_its_parent", incremental::needs_the_wal_between),
    ("p3_incremental_backups_are_refused_with_what_to_do", incremental::refusals),
    ("p4_a_chain_of_backups_is_one", incremental::chains_stay_whole),
    ("p3_what_a_command_copies_restores", low_level::by_command),
    ("p3_what_a_command_copies_of_a_standby_restores", low_level::of_standby),
    ("p3_a_command_that_fails_makes_no_backup", low_level::commands_that_fail),
    ("p3_a_command_that_is_interrupted_leaves_nothing", low_level::interrupted),
    ("p3_a_copy_that_lies_elsewhere_is_made_ready", low_level::external),
    ("p3_a_copy_is_made_by_hand", low_level::by_hand),
    ("p3_a_snapshot_counts_once_it_is_drilled", low_level::snapshot),
    ("basebackup_plain_under_load", basebackup::plain),
    ("basebackup_tar_in_every_compression", basebackup::tar),
    ("basebackup_to_standard_output", basebackup::standard_output),
    ("basebackup_of_a_standby", basebackup::of_standby),
    ("basebackup_of_what_changed", basebackup::incremental),
    ("basebackup_seeds_a_standby", basebackup::seeds_a_standby),
    ("basebackup_that_is_interrupted_leaves_nothing", basebackup::interrupted),
    ("p4_what_is_left_by_expire_restores", expire::under_load),
    ("p3_records_are_those_that_pg_waldump_reads", verify::agrees_with_waldump),
    ("p3_each_segment_a_backup_needs_is_missed", verify::each_needed_segment),
    ("p3_a_backup_that_waited_is_sealed_when_asked", verify::seals_what_waited),
    ("p5_another_cluster_is_refused", resume::other_cluster),
    ("p5_a_clone_that_went_its_own_way_is_refused", resume::diverged_clone),
    ("p5_a_primary_behind_the_archive_is_refused", resume::primary_behind),
    ("p5_a_second_receiver_is_refused", refusals::second_receiver),
    ("p6_wrong_credentials_are_named", refusals::credentials),
    ("p6_wrong_slots_are_named", refusals::slots),
    ("p6_servers_that_cannot_stream_are_named", refusals::not_a_walsender),
    ("p6_folders_that_cannot_be_used_are_named", refusals::folders),
    ("p6_tls_and_channel_binding", tls::verified),
    ("p6_tls_is_never_less_than_asked_for", tls::refused),
    ("p7_segments_of_1_mb_are_those_of_pg_receivewal", identical::of_1_mb),
    ("p7_segments_of_16_mb_are_those_of_pg_receivewal", identical::of_16_mb),
    ("p7_segments_of_64_mb_are_those_of_pg_receivewal", identical::of_64_mb),
    ("p7_compressed_archives_are_the_same", compress::identical),
    ("p1_a_receiver_killed_while_it_compresses_loses_nothing", compress::killed),
    ("p6_client_certificates_are_shown", certificates::of_client),
    ("p6_a_revoked_server_is_refused", certificates::revoked),
    ("p6_tls_without_asking", certificates::direct),
    ("hosts_are_tried_until_one_will_do", hosts::looked_for),
    ("hosts_are_tried_again_after_a_failover", hosts::failover),
    ("p1_a_failover_to_another_host_loses_no_acknowledged_commit", hosts::failover_under_load),
    ("hosts_other_than_the_one_received_from_are_not_guarded", hosts::guarded),
    ("hosts_and_more_come_from_a_service_file", hosts::service),
    ("status_tells_lag_and_slot", status::lag_and_slot),
    ("status_tells_a_gap_and_a_promotion", status::gap_and_promotion),
    ("p7_pg_waldump_reads_the_archive", identical::waldump),
    ("fault_the_connection_is_cut", fault::network::cut),
    ("fault_the_connection_of_a_backup_is_cut", fault::network::backup_cut),
    ("fault_the_network_is_slow", fault::network::slow),
    ("fault_the_network_goes_silent", fault::network::silent),
    ("fault_packets_are_lost", fault::packets::lost),
    ("fault_the_link_is_cut", fault::packets::cut),
    ("fault_bits_of_the_stream_are_flipped", fault::flips::of_stream),
    ("fault_bits_of_the_stream_are_flipped_each_time", fault::flips::of_stream_each_time),
    ("fault_bits_of_a_backup_are_flipped", fault::flips::of_backup),
    ("fault_bits_are_flipped_under_tls", fault::flips::of_tls),
    ("pitr_lands_exactly", pitr::lands_exactly),
    ("pitr_refuses_what_cannot_be_reached", pitr::refused),
    ("pitr_makes_no_tablespace_over_another", pitr::tablespaces),
    ("drill_passes_beside_its_source_and_is_recorded", drill::good),
    ("drill_names_a_damaged_index", drill::damaged_index),
    ("drill_asks_the_operators_own_questions", drill::own_questions),
    ("drill_keeps_away_from_the_sources_tablespaces", drill::tablespaces),
    ("drill_goes_as_far_as_the_archive", drill::far),
    ("drill_leaves_nothing_when_it_is_interrupted", drill::interrupted),
    ("drill_refuses_what_it_cannot_do", drill::refusals),
    ("pg_basebackup_refuses_what_the_real_one_refuses", pg_basebackup::refusals),
    ("pg_basebackup_says_what_the_real_one_says", pg_basebackup::words_of_success),
    ("pg_basebackup_fails_as_the_real_one_does", pg_basebackup::failures),
    ("pg_basebackup_cleans_up_when_it_is_stopped", pg_basebackup::stopped),
    ("pg_receivewal_refuses_what_the_real_one_refuses", pg_receivewal::refusals),
    ("pg_receivewal_makes_and_drops_slots", pg_receivewal::slots),
    ("pg_receivewal_streams_beside_the_real_one", pg_receivewal::streams),
    ("pg_receivewal_ends_as_the_real_one_does", pg_receivewal::ends),
    ("pg_receivewal_waits_for_a_server_that_is_away", pg_receivewal::waits),
    ("pg_receivewal_is_better_where_the_real_one_is_wrong", pg_receivewal::better),
    ("readme_commands_work", readme::commands_work),
    ("p7_stock_tools_restore_by_the_readmes_steps", readme::by_hand),
    ("p8_wal_get_tells_unknown_from_absent", wal_get::contract),
    ("p8_a_recovery_does_not_end_while_its_repository_is_away", wal_get::recovery),
    ("p8_a_standby_restored_from_the_repository_follows", backup::standby),
    ("fault_power_is_lost_on_ext4", fault::power::lost_on_ext4),
    ("fault_power_is_lost_on_xfs", fault::power::lost_on_xfs),
    ("fault_a_sync_fails", fault::inject::a_sync_fails),
    ("fault_writing_fails", fault::inject::writing_fails),
    ("fault_the_disk_stalls", fault::disk::stalls),
    ("fault_the_disk_is_gone", fault::disk::is_gone),
    ("fault_the_disk_is_full", fault::disk::fills_up),
    ("fault_the_receiver_is_killed", fault::killed::receiver),
    ("fault_the_backup_is_killed", fault::killed::backup),
    ("fault_the_server_is_killed", fault::killed::server),
    ("fault_receiver_backup_or_server_is_killed", fault::killed::any),
    ("fault_receiver_and_server_at_once", fault::killed::all),
    ("fault_the_server_is_restarted", fault::servers::restarted),
    ("fault_the_server_is_promoted", fault::servers::promoted),
    ("fault_the_server_is_replaced", fault::servers::replaced),
];

/// Scenarios of walhold's own side, which looks the same whatever the server: they run on the oldest and
/// the newest version at hand, and on all with `WALHOLD_TEST_EVERYWHERE`. Faults run on the newest only.
const OWN_SIDE: &[&str] = &[
    "p1_a_power_cut_at_any_status_keeps_what_it_reported",
    "p1_a_full_disk_stops_no_one_for_good",
    "p1_a_slot_that_keeps_too_much_is_dropped",
    "p1_a_receiver_killed_while_it_compresses_loses_nothing",
    "p2_resumes_in_segments_of_1_gb",
    "p3_a_command_that_fails_makes_no_backup",
    "p3_a_command_that_is_interrupted_leaves_nothing",
    "p3_a_backup_killed_alone_is_never_offered",
    "p3_a_killed_backup_is_never_offered",
    "p3_a_backup_whose_wal_comes_late_is_sealed_then",
    "p3_a_receiver_waits_for_a_backup_alone",
    "p3_a_damaged_file_is_named_and_refused",
    "p4_what_is_left_by_expire_restores",
    "p5_a_second_receiver_is_refused",
    "p6_folders_that_cannot_be_used_are_named",
    "p6_a_revoked_server_is_refused",
    "p6_tls_is_never_less_than_asked_for",
    "hosts_and_more_come_from_a_service_file",
    "p8_wal_get_tells_unknown_from_absent",
    "drill_names_a_damaged_index",
    "drill_asks_the_operators_own_questions",
    "drill_goes_as_far_as_the_archive",
    "drill_leaves_nothing_when_it_is_interrupted",
    "drill_refuses_what_it_cannot_do",
    "pg_basebackup_cleans_up_when_it_is_stopped",
    "status_tells_a_gap_and_a_promotion",
    "readme_commands_work",
    "p3_a_copy_is_made_by_hand",
    "p3_a_copy_that_lies_elsewhere_is_made_ready",
    "p3_a_snapshot_counts_once_it_is_drilled",
    "p3_a_delta_restore_rewrites_what_a_server_changed",
    "p3_a_restore_that_is_stopped_leaves_nothing",
    "p3_a_restore_to_a_disk_that_fills_up_leaves_nothing",
    "p3_incremental_backups_are_refused_with_what_to_do",
    "basebackup_that_is_interrupted_leaves_nothing",
    "pitr_makes_no_tablespace_over_another",
    "pitr_refuses_what_cannot_be_reached",
    "pg_basebackup_fails_as_the_real_one_does",
    "pg_basebackup_refuses_what_the_real_one_refuses",
    "p8_a_recovery_does_not_end_while_its_repository_is_away",
];

fn main() {
    let arguments = Arguments::from_args();
    let servers = servers::at_hand();
    if servers.is_empty() {
        eprintln!("no PostgreSQL server at hand: integration/test fetches some");
    }
    let world: &'static World = Box::leak(Box::new(World::new(&servers)));
    let everywhere = std::env::var_os("WALHOLD_TEST_EVERYWHERE").is_some();
    let majors = || servers.iter().map(|server| server.major);
    let ends: Vec<u32> = majors().min().into_iter().chain(majors().max()).collect();
    for name in OWN_SIDE {
        assert!(SCENARIOS.iter().any(|(scenario, _)| scenario == name), "there is no scenario {name}");
    }
    let mut trials = Vec::new();
    for (name, scenario) in SCENARIOS {
        let runs = |major: &u32| match name {
            _ if everywhere => true,
            name if name.starts_with("fault_") => majors().max() == Some(*major),
            name => !OWN_SIDE.contains(name) || ends.contains(major),
        };
        for server in servers.iter().filter(|server| runs(&server.major)) {
            let server = server.clone();
            trials.push(Trial::ignorable_test(format!("{}/{name}", server.major), move || {
                let room = world.room(&server);
                match scenario(&room) {
                    Ok(()) => Ok(Completion::Completed),
                    Err(skip) => {
                        if name.starts_with("fault_") {
                            world.matrix.skip(server.major, name, &skip.0);
                        }
                        Ok::<_, Failed>(Completion::ignored_with(skip.0))
                    }
                }
            }));
        }
        if servers.is_empty() {
            let reason = "no PostgreSQL server at hand";
            trials.push(Trial::ignorable_test(*name, move || Ok::<_, Failed>(Completion::ignored_with(reason))));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    world.matrix.close(&servers, conclusion.has_failed());
    world.close();
    conclusion.exit();
}
