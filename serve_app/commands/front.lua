-- Answers to a request whose head is incomplete or too large. HAProxy's HTTP frontend has fixed texts for these.
-- The argument is the folder with the complete responses.
local folder = ...

for _, status in ipairs({"408", "431"}) do
    local file = assert(io.open(folder .. "/" .. status .. ".http", "rb"))
    local response = file:read("a")
    file:close()
    core.register_service("answer_" .. status, "tcp", function(applet) applet:send(response) end)
end
