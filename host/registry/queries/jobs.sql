-- name: InsertJob :exec
INSERT INTO jobs (id, kind, serial, request, step, step_name, phase, started_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: StepJob :execrows
UPDATE jobs SET step = ?, step_name = ?, phase = ?, updated_at = ? WHERE id = ?;

-- name: DeleteJob :exec
DELETE FROM jobs WHERE id = ?;

-- name: Jobs :many
SELECT * FROM jobs ORDER BY started_at, id;
