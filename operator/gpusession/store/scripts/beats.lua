-- Beats of many Sessions at once.
-- KEYS[1] the events  [2] the deadlines, and then for each beat its record and its tokens
-- ARGV    gateway, and then for each beat uid and token digest; at most 200 beats
-- Returns one answer for each beat.
-- Atomic: of a beat and a claim exactly one wins, and a late beat makes no record.
-- include clock
-- include record
-- include events
-- include tokens
-- include beat
local answers = {}
for i = 1, (#KEYS - 2) / 2 do
  local key, tokens = KEYS[2 * i + 1], KEYS[2 * i + 2]
  local uid, digest = ARGV[2 * i], ARGV[2 * i + 1]
  local record = read(key, BEATEN)
  local answer, expires = admit(record, tokens, digest)
  if expires then
    slide(record, tokens, digest, expires)
    answer = beat(uid, key, record, ARGV[1], BEAT_RETURNS)
  end
  answers[i] = answer
end
return answers
