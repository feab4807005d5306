-- name: PutDelivery :execrows
INSERT INTO deliveries (envelope_id, sender, serial, attempt, header, admitted_at, deadline, log_index)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (envelope_id, sender) DO UPDATE SET
    serial = excluded.serial, attempt = excluded.attempt, header = excluded.header,
    admitted_at = excluded.admitted_at, deadline = excluded.deadline, log_index = excluded.log_index
WHERE excluded.attempt > deliveries.attempt;

-- name: TakeDelivery :one
DELETE FROM deliveries WHERE envelope_id = ? AND serial = ? AND attempt = ?
RETURNING *;

-- name: AllDeliveries :many
SELECT * FROM deliveries ORDER BY log_index;

-- name: DeliveriesOf :many
SELECT * FROM deliveries WHERE serial = ? ORDER BY log_index;
