-- Accept cells without running them. ARGV: expires_at, max_pending, max_bytes, (cell_id, code)...
-- Returns {'accepted', cells before, indices}.
local before = tonumber(redis.call('HGET', SESSION, 'cells'))
local indices, refusal = accept(4, tonumber(ARGV[2]), tonumber(ARGV[3]))
if not indices then return {refusal} end
touch(ARGV[1])
return {'accepted', before, indices}
