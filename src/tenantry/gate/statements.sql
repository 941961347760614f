-- The gate's own statement: everything else it does to the database is inside the function.

-- name: batch :many
-- One call, one transaction, one fsync (batch.sql). $1 instance, $2 skip locked rows, $3 settlements, $4 intents.
select b.part, b.ord, b.code, b.log_position, b.detail, b.prior_action_id, b.output
from tenantry.batch_v1($1, $2, $3::tenantry.settle_item_v1[], $4::tenantry.begin_item_v1[]) b;

-- name: note_shed :one
-- How many requests of a tenant were turned away before they were decided on, one row a second at most.
select tenantry.journal_note_v1('shed', 'throttled', $1, $2, '', 'gate.shed', '', $3::jsonb, $4, $5, $6) as log_position
