"""The tables of a study's votes, and the queries that take more than a line."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS study (sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS raters (
    id INTEGER PRIMARY KEY, token_sha256 TEXT NOT NULL UNIQUE, code TEXT NOT NULL, excluded TEXT NOT NULL DEFAULT '',
    finished REAL);
CREATE TABLE IF NOT EXISTS links (
    token TEXT PRIMARY KEY, rater INTEGER NOT NULL REFERENCES raters);
CREATE TABLE IF NOT EXISTS pairs (item TEXT PRIMARY KEY, place INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS leases (
    item TEXT NOT NULL, rater INTEGER NOT NULL, expires REAL NOT NULL, PRIMARY KEY (item, rater));
CREATE TABLE IF NOT EXISTS ratings (
    item TEXT NOT NULL, rater INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (item, rater));
CREATE TABLE IF NOT EXISTS votes (
    id INTEGER PRIMARY KEY, item TEXT NOT NULL, question TEXT NOT NULL, rater INTEGER NOT NULL REFERENCES raters,
    answer TEXT NOT NULL CHECK (answer IN ('left', 'right')), milliseconds INTEGER NOT NULL, at REAL NOT NULL,
    UNIQUE (item, question, rater));
CREATE TRIGGER IF NOT EXISTS votes_stay BEFORE UPDATE ON votes
    BEGIN SELECT RAISE(ABORT, 'votes are append only'); END;
CREATE TRIGGER IF NOT EXISTS votes_remain BEFORE DELETE ON votes
    BEGIN SELECT RAISE(ABORT, 'votes are append only'); END;
"""
# The pair that the rater has a lease of, or the one with the fewest taken seats.
NEXT_PAIR = """
SELECT item, taken FROM (
    SELECT p.item, p.place, (SELECT COUNT(*) FROM leases WHERE item = p.item AND rater = :rater) AS mine,
        (SELECT COUNT(*) FROM ratings g JOIN raters r ON r.id = g.rater WHERE g.item = p.item AND r.excluded = '')
        + (SELECT COUNT(*) FROM leases WHERE item = p.item AND expires > :now AND rater <> :rater) AS taken
    FROM pairs p WHERE NOT EXISTS (SELECT 1 FROM ratings WHERE item = p.item AND rater = :rater))
WHERE taken < :seats ORDER BY mine DESC, taken, (place * 7919 + :rater * 104729) % 10007, place LIMIT 1
"""
ALL_VOTES = """
SELECT v.item, v.question, v.rater, v.answer, v.milliseconds, v.at,
    EXISTS (SELECT 1 FROM ratings WHERE item = v.item AND rater = v.rater) AS complete FROM votes v ORDER BY v.id
"""
ALL_RATERS = """
SELECT id AS rater, code, excluded, finished, (SELECT COUNT(*) FROM ratings WHERE rater = raters.id) AS ratings
FROM raters ORDER BY id
"""
