-- Accept a run whose client does not wait for it: its own cell, if it has one, and what it takes to begin it, in one write.
-- ARGV: expires_at, run_id, the rest of what it asks (a JSON object), max_pending, max_bytes, [cell_id, code].
-- Returns {'queued', (what it asks, as it is kept)}; {'known'} when this run was accepted before; {'existing', index} when
-- its own cell is no longer pending.
if redis.call('HEXISTS', QUEUED, ARGV[2]) == 1 or redis.call('HEXISTS', RUNS, ARGV[2]) == 1 then return {'known'} end
local bound = redis.call('HGET', SESSION, 'cells') - 1
if #ARGV > 5 then
  local indices, refusal = accept(6, tonumber(ARGV[4]), tonumber(ARGV[5]))
  if not indices then return {refusal} end
  if redis.call('HGET', CELL .. indices[1], 'status') ~= 'pending' then return {'existing', indices[1]} end
  bound = math.max(bound, indices[1])
elseif redis.call('HGET', SESSION, 'bytes') + #ARGV[3] > tonumber(ARGV[5]) then
  return {'log_full'}
end
local order = redis.call('HINCRBY', SESSION, 'queued', 1)
local kept = string.format('{"order":%d,"bound":%d,%s', order, bound, string.sub(ARGV[3], 2))
redis.call('HINCRBY', SESSION, 'bytes', #kept)
redis.call('HSET', QUEUED, ARGV[2], kept)
touch(ARGV[1])
return {'queued', kept}
