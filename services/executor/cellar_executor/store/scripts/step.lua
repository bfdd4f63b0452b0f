-- Finish a cell and, in the same write, start the next one of its run or skip the rest of it.
-- ARGV: expires_at, index, run_id, status, outcome, generation, bound, 'next' | 'skip', 'repeatable' | 'unrepeatable',
-- index of the first cell of an atomic run ('' = it is not atomic), 'ok' | '' (whether all its cells were ok so far).
-- Returns {'ok', (index, cell_id, code)...}: the cell that was started, or those that were skipped. Doing it twice, for
-- a reply lost on the way, answers the same; another outcome for a finished cell is refused.
local index, run_id, bound = ARGV[2], ARGV[3], ARGV[7]
local cell = CELL .. index
local status, its_run, epoch, outcome = unpack(redis.call('HMGET', cell, 'status', 'run_id', 'epoch', 'outcome'))
if its_run ~= run_id or epoch ~= EPOCH then return {'refused'} end
if status ~= 'running' and (status ~= ARGV[4] or outcome ~= ARGV[5]) then return {'refused'} end

local reply = {'ok'}
if status == 'running' then
  redis.call('HSET', cell, 'status', ARGV[4], 'outcome', ARGV[5])
  redis.call('HINCRBY', SESSION, 'bytes', #ARGV[5])
  touch(ARGV[1])
  local atomic = ARGV[10] ~= ''
  local ended_well = ARGV[11] == 'ok' and #redis.call('ZRANGEBYSCORE', PENDING, '-inf', bound, 'LIMIT', 0, 1) == 0
  if atomic and ended_well then
    for i = tonumber(ARGV[10]), tonumber(index) do
      if redis.call('HGET', CELL .. i, 'run_id') == run_id then redis.call('HDEL', CELL .. i, 'provisional') end
    end
  end
  if ARGV[9] == 'unrepeatable' and (not atomic or ended_well) then redis.call('HSET', SESSION, 'unrepeatable', 1) end
  if ARGV[8] == 'next' then return start_next(reply, bound, run_id, ARGV[6], atomic) end
  redis.call('HDEL', SESSION, 'running')
  for _, rest in ipairs(redis.call('ZRANGEBYSCORE', PENDING, '-inf', bound)) do
    redis.call('HSET', CELL .. rest, 'status', 'skipped', 'run_id', run_id, 'generation', ARGV[6])
    redis.call('ZREM', PENDING, rest)
  end
end

local wanted = ARGV[8] == 'next' and 'running' or 'skipped'
for i = tonumber(index) + 1, tonumber(bound) do
  local other, theirs = unpack(redis.call('HMGET', CELL .. i, 'status', 'run_id'))
  if other == wanted and theirs == run_id then
    reply[#reply + 1] = i
    reply[#reply + 1] = redis.call('HGET', CELL .. i, 'cell_id')
    reply[#reply + 1] = redis.call('HGET', CELL .. i, 'code')
  end
end
return reply
